#!/usr/bin/env bash
# Install the system packages Wisp can use and this machine lacks: the venv module, the Vulkan loader, Mesa's Vulkan drivers.
# Only the first is needed to start; without a Vulkan driver Wisp serves on the CPU target. Prints nothing when all is there.
set -euo pipefail
python=${1:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "Wisp needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1 || echo missing). Name another: make PYTHON=python3.12 …" >&2
    exit 1
}

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
ldconfig=$(command -v ldconfig || echo /sbin/ldconfig)
"$ldconfig" -p 2>/dev/null | grep -q 'libvulkan\.so\.1' || missing+=(libvulkan1)
compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null || missing+=(mesa-vulkan-drivers)
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "installed: ${missing[*]}" >&2
    exit 0
fi
case " ${missing[*]} " in
*-venv*)
    echo "please install ${missing[*]} (could not do it from here), then run make again" >&2
    exit 1
    ;;
esac
echo "no Vulkan driver here and ${missing[*]} could not be installed: Wisp will serve on the CPU target" >&2
