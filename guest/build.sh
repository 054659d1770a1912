#!/bin/sh
# Builds assets/guest.wasm from this crate with Debian 12's Rust, byte for byte the same in any checkout.
#   guest/build.sh           build and put the result into assets/
#   guest/build.sh --check   build and compare with assets/guest.wasm
#   guest/build.sh test      unit tests on this machine, rustfmt, and clippy with warnings as errors
set -eu

guest=$(cd "$(dirname "$0")" && pwd -P)
assets=$(dirname "$guest")/assets
target=$guest/target
crates=/usr/share/cargo/registry

missing=
need() { # need PACKAGE PATH…: the package, unless one of the paths exists
    package=$1
    shift
    for path; do [ -e "$path" ] && return; done
    missing="$missing $package"
}
need cargo /usr/bin/cargo
need rustc /usr/bin/rustc
need gcc /usr/bin/cc
need lld /usr/bin/wasm-ld /usr/bin/wasm-ld-[0-9]*
need libstd-rust-dev-wasm32 /usr/lib/rustlib/wasm32-wasi
need librust-serde-dev "$crates"/serde-1.*
need librust-serde-derive-dev "$crates"/serde_derive-1.*
need librust-serde-json-dev "$crates"/serde_json-1.*
if [ "${1-}" = test ]; then
    need rustfmt /usr/bin/rustfmt
    need rust-clippy /usr/bin/cargo-clippy
fi
if [ -n "$missing" ]; then
    echo "guest: the build needs Debian packages that are not installed: apt-get install$missing" >&2
    exit 1
fi

# Only Debian's compiler and crates: no rustup, no user configuration or flags, no network.
run_cargo() { # run_cargo COMMAND [ARGUMENT…]
    command=$1
    shift
    # Debian has one version of each crate: a lock from another toolchain could only name others.
    rm -f "$guest/Cargo.lock"
    (cd "$guest" && env -i PATH=/usr/bin:/bin HOME="$target" CARGO_HOME="$target/cargo" CARGO_TARGET_DIR="$target" \
        RUSTC=/usr/bin/rustc RUSTFLAGS="--remap-path-prefix=$guest=guest" /usr/bin/cargo "$command" --offline --quiet \
        --config 'source.crates-io.replace-with="debian"' --config "source.debian.directory=\"$crates\"" "$@")
}

build() { run_cargo build --release --target wasm32-wasi; }
built=$target/wasm32-wasi/release/guest.wasm

case ${1-build} in
build)
    build
    cp "$built" "$assets/guest.wasm"
    ;;
--check)
    build
    if ! cmp "$built" "$assets/guest.wasm"; then
        echo "guest: assets/guest.wasm is not what guest/ builds; run guest/build.sh and commit the result" >&2
        exit 1
    fi
    ;;
test)
    run_cargo test --lib
    (cd "$guest" && /usr/bin/rustfmt --check --edition 2021 src/lib.rs src/main.rs)
    run_cargo clippy --all-targets -- -D warnings
    run_cargo clippy --target wasm32-wasi -- -D warnings
    ;;
*)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
