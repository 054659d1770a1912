#!/bin/sh
# Unpacks Debian packages, without their dependencies, into an image's root file system: no shell, no package manager, no
# documentation except licences. No maintainer script runs.
#   rootfs.sh ROOT LIST    LIST: a file with one package name per line; # starts a comment
set -eu

root=$1
packages=$(sed 's/#.*//' "$2")

for folder in bin sbin lib lib64; do
    mkdir -p "$root/usr/$folder"
    ln -s "usr/$folder" "$root/$folder"
done
# Where scanners look for the packages of an image without dpkg.
status=$root/var/lib/dpkg/status.d
mkdir -p "$status"

debs=$(mktemp -d)
cd "$debs"
# shellcheck disable=SC2086  # one word a package
apt-get -qq -o APT::Sandbox::User=root download $packages
for deb in *.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --wildcards \
        --exclude='./usr/share/doc/*/[!c]*' --exclude='./usr/share/doc/*/changelog*' --exclude='./usr/share/man' \
        --exclude='./usr/share/lintian' --exclude='./usr/share/locale' --exclude='./usr/share/bug' \
        --exclude='./usr/lib/*/gconv' --exclude='./usr/lib/*/audit'
    dpkg-deb --field "$deb" >"$status/$(dpkg-deb --field "$deb" Package)"
done
cd /
rm -r "$debs"
