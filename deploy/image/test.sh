#!/bin/sh
# Builds an image without a Docker engine, runs it locked down, posts speech to it, and reports its size by layer.
#   test.sh [cpu|gpu]     as root, on Debian 12 with buildah and mmdebstrap
# The gpu image must use Vulkan; without a GPU it uses Mesa's software driver. Environment:
#   BASE              base image; made here if it isn't in buildah's storage
#   BUILD_ARGUMENTS   additional flags for the build
#   LIMIT_MB          fail if the compressed image is larger (cpu: 90)
set -eu

target=${1:-cpu}
base=${BASE:-localhost/debian:bookworm-slim}
image=localhost/wisp:$target
here=$(cd "$(dirname "$0")" && pwd -P)
export BUILDAH_ISOLATION=chroot

for tool in buildah mmdebstrap unshare; do
    command -v $tool >/dev/null || missing="${missing-} $tool"
done
[ -z "${missing-}" ] || { echo "image-test: please install$missing" >&2; exit 1; }

buildah inspect --type image "$base" >/dev/null 2>&1 || "$here/base.sh" "$base"
# --timestamp and the dates in the Dockerfile are equal: two builds of the same sources give the same layers.
# shellcheck disable=SC2086  # several flags
buildah build --quiet --layers --format docker --timestamp 1767225600 --build-arg BASE="$base" --target "$target" \
    --tag "$image" ${BUILD_ARGUMENTS-} "$here/../.."

work=$(mktemp -d)
container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" >/dev/null; rm -r "$work"' EXIT
mkdir "$work/root"
buildah inspect --type image "$image" >"$work/config.json"
unshare --net --mount --pid --ipc --uts --fork python3 "$here/try_image.py" "$(buildah mount "$container")" \
    "$work/config.json" "$here/../../assets/sample.wav" "$work/root" $([ "$target" = cpu ] || echo WISP_TARGET=gpu)
python3 "$here/size.py" "$image" ${LIMIT_MB-$([ "$target" = gpu ] || echo 90)}
