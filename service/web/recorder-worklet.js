/** On the audio thread: sound → blocks of 16-bit PCM and their loudness, posted to the page. */

const BLOCK = 1024; // frames: 64 ms at 16 kHz

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(BLOCK);
    this.n = 0;
    this.peak = 0;
    this.ended = false;
    this.port.onmessage = () => {
      this.send();
      this.port.postMessage({ ended: true });
      this.ended = true;
    };
  }

  send() {
    const block = this.block.slice(0, this.n);
    if (block.length) this.port.postMessage({ block, peak: this.peak }, [block.buffer]);
    this.n = 0;
    this.peak = 0;
  }

  process([channels]) {
    const samples = channels?.[0] ?? [];
    for (const sample of samples) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.peak = Math.max(this.peak, Math.abs(clipped));
      this.block[this.n] = Math.round(clipped * 32767);
      this.n += 1;
      if (this.n === BLOCK) this.send();
    }
    return !this.ended;
  }
}

registerProcessor("recorder", Recorder);
