#!/usr/bin/env bash
# Installs system packages that Wisp can use and this machine lacks: the venv module, the Vulkan loader, Mesa's Vulkan drivers.
# Only the first is required; without a Vulkan driver Wisp serves on the CPU target. Prints nothing if all are installed.
set -euo pipefail
python=${1:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "Wisp needs Python 3.11 or newer; '$python' is $("$python" --version 2>/dev/null || echo missing). Name another: make PYTHON=python3.12 …" >&2
    exit 1
}

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
if [ "$(uname)" = Linux ]; then # elsewhere the system brings its own graphics interface
    ldconfig=$(command -v ldconfig || echo /sbin/ldconfig)
    # Not grep -q: it exits at the first match, and ldconfig's broken pipe would count as a missing library.
    "$ldconfig" -p 2>/dev/null | grep 'libvulkan\.so\.1' >/dev/null || missing+=(libvulkan1)
    compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null || missing+=(mesa-vulkan-drivers)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

apt() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
        [ -t 0 ] || as_root+=(-n) # nobody is there to type a password
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"
}
if command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}" >&2
    apt update >&2 || true # one source out of reach does not matter while the packages are known
    if apt install -y --no-install-recommends "${missing[@]}" >/dev/null; then
        exit 0
    fi
fi
case " ${missing[*]} " in
*-venv*)
    echo "please install ${missing[*]} (could not do it from here), then run make again" >&2
    exit 1
    ;;
esac
echo "no Vulkan driver here and ${missing[*]} could not be installed: Wisp will serve on the CPU target" >&2
