#!/bin/sh
# Makes the Dockerfile's base image where no registry offers it: a minimal Debian 12 from this machine's mirror.
#   base.sh NAME    for example localhost/debian:bookworm-slim
# Run as root, on Debian 12.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ -s "$sources" ] && break; done
mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/root.tar" "$sources"

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root.tar" /
# Builds trust this machine's certificates: its mirrors may have their own.
[ ! -s /etc/ssl/certs/ca-certificates.crt ] || buildah add --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
buildah config --cmd /bin/bash "$container"
buildah commit --quiet --rm "$container" "$1"
