#!/bin/sh
# Compares the compose files with the Compose schema, and the Kubernetes manifests with Kubernetes' own.
# Each overlay is checked as kustomize renders it, alone and with every component; without kubectl, the base alone.
# Compose itself reads its files too, where it is there (it takes no engine); COMPOSE names another than Docker's.
set -eu

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check check-jsonschema kubernetes-validate

"$work/venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml compose.keys.yaml
compose=${COMPOSE:-docker compose}
if $compose version >/dev/null 2>&1; then
    for profile in cpu nvidia dri; do
        $compose --profile "$profile" config --quiet
        $compose -f compose.yaml -f compose.keys.yaml --profile "$profile" config --quiet
    done
else
    echo "deploy-check: no Docker Compose here, so only the schema has read the compose files" >&2
fi
if command -v kubectl >/dev/null; then
    for overlay in cpu gpu-nvidia gpu-dri; do
        kubectl kustomize "deploy/kubernetes/$overlay" >"$work/$overlay.yaml"
        "$work/venv/bin/kubernetes-validate" --strict "$work/$overlay.yaml"
    done
    # kustomize reads nothing outside the folder it is given, so the overlay with every component stands beside them.
    cp -r deploy/kubernetes "$work/kubernetes"
    printf 'components:\n  - ../api-keys\n  - ../autoscale-by-queue\n' >>"$work/kubernetes/cpu/kustomization.yaml"
    kubectl kustomize "$work/kubernetes/cpu" >"$work/components.yaml"
    "$work/venv/bin/kubernetes-validate" --strict "$work/components.yaml"
else
    for manifest in deployment service autoscaler disruption-budget network-policy; do
        "$work/venv/bin/kubernetes-validate" --strict "deploy/kubernetes/base/$manifest.yaml"
    done
fi
