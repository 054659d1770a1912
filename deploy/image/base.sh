#!/bin/sh
# Makes the image that the Dockerfile starts from, where no hub offers it: the smallest Debian 12, from this machine's mirror.
#   base.sh NAME    for example localhost/debian:bookworm-slim
# Run as root, on Debian 12.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ -s "$sources" ] && break; done
mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/root.tar" "$sources"

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root.tar" /
# What this machine trusts, the builds on it trust: its mirrors may have certificates of their own.
[ ! -s /etc/ssl/certs/ca-certificates.crt ] || buildah add --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
buildah config --cmd /bin/bash "$container"
buildah commit --quiet --rm "$container" "$1"
