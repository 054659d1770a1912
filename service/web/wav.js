/** PCM as a WAV file. */

const HEADER_BYTES = 44;

/** Int16Array blocks of mono PCM → a 16-bit WAV file's blob; `rate` in Hz. */
export function wavOf(blocks, rate) {
  const nBytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  const name = (at, text) => [...text].forEach((letter, index) => header.setUint8(at + index, letter.charCodeAt(0)));
  name(0, "RIFF");
  header.setUint32(4, HEADER_BYTES - 8 + nBytes, true);
  name(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of the format chunk
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * 2, true); // bytes a second
  header.setUint16(32, 2, true); // bytes a frame
  header.setUint16(34, 16, true); // bits a sample
  name(36, "data");
  header.setUint32(40, nBytes, true);
  return new Blob([header, ...blocks], { type: "audio/wav" });
}
