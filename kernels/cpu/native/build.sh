#!/bin/sh
# Builds assets/cpu-x86_64.so from the C files here, once for AVX-512 and once for AVX2; --check compares instead.
set -eu
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "kernels/cpu/native is for x86-64 Linux; elsewhere the CPU target computes in NumPy" >&2
  exit 0
fi
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT
cd "$here"
for variant in avx512:x86-64-v4 avx2:x86-64-v3; do
  gcc -c -O3 -std=gnu11 -march="${variant#*:}" -mprefer-vector-width=512 -DSUFFIX="${variant%%:*}" -ffp-contract=fast \
    -fno-math-errno -fno-trapping-math -fwrapv -fPIC -fvisibility=hidden -fno-ident -fno-stack-protector \
    -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers -Wno-psabi \
    -o "$out/${variant%%:*}.o" cpu.c
done
gcc -shared -nostdlib -s -Wl,--build-id=none -o "$out/cpu.so" "$out/avx512.o" "$out/avx2.o"
if [ "${1:-}" = --check ]; then
  cmp "$out/cpu.so" "$root/assets/cpu-x86_64.so"
else
  # Atomically: a process may have the old one mapped.
  cp "$out/cpu.so" "$root/assets/.cpu-x86_64.so"
  mv "$root/assets/.cpu-x86_64.so" "$root/assets/cpu-x86_64.so"
fi
