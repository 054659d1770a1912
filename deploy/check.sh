#!/bin/sh
# Validates the compose files against the Compose schema, and the Kubernetes manifests against Kubernetes' own.
# Each overlay is checked as rendered by kustomize, alone and with every component; without kubectl, only the base.
# If Docker Compose is installed, it parses its files too (this needs no engine); COMPOSE names another program.
set -eu

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check check-jsonschema kubernetes-validate

"$work/venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml compose.keys.yaml
compose=${COMPOSE:-docker compose}
if $compose version >/dev/null 2>&1; then
    for profile in cpu home-assistant nvidia dri; do
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
    # kustomize reads nothing outside its folder, so the overlay with every component is placed next to them.
    cp -r deploy/kubernetes "$work/kubernetes"
    printf 'components:\n  - ../api-keys\n  - ../autoscale-by-queue\n' >>"$work/kubernetes/cpu/kustomization.yaml"
    kubectl kustomize "$work/kubernetes/cpu" >"$work/components.yaml"
    "$work/venv/bin/kubernetes-validate" --strict "$work/components.yaml"
else
    for manifest in deployment service autoscaler disruption-budget network-policy; do
        "$work/venv/bin/kubernetes-validate" --strict "deploy/kubernetes/base/$manifest.yaml"
    done
fi
