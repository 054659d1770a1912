#!/usr/bin/env bash
# From text and voices to assets/embedded, each step going on from where it stopped. Needs Debian's espeak-ng, flite and festival.
# SHARED: folder with text/, speech-unlabelled/ and models/tiny_en/. CACHE: where everything made on the way lies, many GB.
# DEVICE: cpu or cuda. OUT: the folder that gets the model.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
shared=${SHARED:-../shared} cache=${CACHE:-.cache/train} device=${DEVICE:-cpu} out=${OUT:-assets/embedded}
data=$cache/data
workers=2 hours=160
[ "$device" = cpu ] || workers=1 hours=800  # of sound in the joint run: a GPU hears them in about half an hour

for command in espeak-ng flite festival; do
    command -v $command >/dev/null || { echo "please install $command: apt-get install espeak-ng flite festival festvox-us-slt-hts festvox-kdlpc16k" >&2; exit 1; }
done
for folder in text speech-unlabelled models/tiny_en; do
    [ -d "$shared/$folder" ] || { echo "no $shared/$folder: SHARED names the folder that has it" >&2; exit 1; }
done

mkdir -p "$data"
run() { "$python" -m "tools.train.$1" "${@:2}"; }
run synthesise --text "$shared/text" --out "$data" --shards 28
run tokenizer --text "$shared/text" --out "$data/tokenizer.json"
run teacher --model "$shared/models/tiny_en" --data "$data" --clips "$shared/speech-unlabelled" --device "$device"
run pseudo --model "$shared/models/tiny_en" --data "$data" --clips "$shared/speech-unlabelled"
run train --data "$data" --out "$cache/encoder" --part encoder --hours 40 --device "$device" &
run train --data "$data" --out "$cache/decoder" --part decoder --hours 30 --device "$device"
wait $!
run align --data "$data" --state "$cache/encoder/state.pt"
run train --data "$data" --out "$cache/joint" --part joint --hours "$hours" --device "$device" --workers $workers \
    --start "$cache/encoder" --start "$cache/decoder"
run train --data "$data" --out "$cache/further" --part joint --hours "$hours" --device "$device" --workers $workers \
    --start "$cache/joint" --peak 0.2
run export --state "$cache/further/state.pt" --mix "$cache/joint/state.pt" --tokenizer "$data/tokenizer.json" --out "$out"
