#!/bin/sh
# Build kennel:latest for the host's architecture. Settings come from the environment, all optional:
#
#   IMAGE=kennel:latest   BASE=debian:bookworm-slim   TORCH=cuda|cpu   PRETRAINED=resnet50   RUN_AS=root
#   PLATFORM=linux/amd64  REVISION=what the label says (default: git's)   ENGINE=a docker or podman that answers
#   CA_BUNDLE=FILE        handed to pip as a build secret (PIP_CERT or SSL_CERT_FILE where those are set)
#   PIP_CONFIG_FILE=FILE  a pip.conf, handed over as a build secret
set -eu
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-kennel:latest}
BASE=${BASE:-debian:bookworm-slim}
TORCH=${TORCH:-cuda}
CA_BUNDLE=${CA_BUNDLE:-${PIP_CERT:-${SSL_CERT_FILE:-}}}
# Seen: a first build writes 15 GB, of which the CUDA image keeps 7.
NEEDED_GB=16

say() { echo "image: $*" >&2; }
fail() { say "$*"; exit 1; }

have_image() { "$ENGINE" image inspect "$1" >/dev/null 2>&1; }

check_lock() {
    [ -f "container/requirements-torch-$TORCH.txt" ] && return 0
    [ "$TORCH" = cpu ] || fail "TORCH=$TORCH is unknown; it is cuda or cpu"
    fail "there is no lock of PyTorch's CPU wheels; write it with: make lock-cpu TORCH_INDEX=<PyTorch's index of CPU wheels>"
}

check_room() {
    root=$("$ENGINE" info --format '{{.DockerRootDir}}' 2>/dev/null || "$ENGINE" info --format '{{.Store.GraphRoot}}')
    say "a first build downloads about 3.5 GB and needs $NEEDED_GB GB in $root, of which the image keeps 7 (TORCH=cpu: less)"
    [ -d "$root" ] || return 0 # the engine runs on another machine
    free_gb=$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free_gb" -lt "$NEEDED_GB" ] && ! have_image "$IMAGE" && ! have_image kennel:latest; then
        fail "not enough room in $root: $free_gb GB free, $NEEDED_GB GB needed; free some, or move the engine's folder"
    fi
}

ensure_base() {
    have_image "$BASE" && return 0
    "$ENGINE" pull ${PLATFORM:+--platform "$PLATFORM"} "$BASE" >&2 && return 0
    [ "$BASE" = debian:bookworm-slim ] || fail "the base image $BASE cannot be pulled"
    { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; } || fail "$BASE cannot be pulled, and making it from Debian's packages takes root on Debian or Ubuntu"
    here=linux/$(dpkg --print-architecture)
    [ "${PLATFORM:-$here}" = "$here" ] || fail "$BASE cannot be pulled, and can be made from Debian's packages for $here alone"
    make_base
}

# Where no registry answers, Debian's own packages make the same base under the same name.
make_base() {
    say "no image registry answers: making $BASE from Debian's packages"
    # Ubuntu's debootstrap comes without Debian's keys, and would then trust any mirror.
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap debian-archive-keyring; } >/dev/null
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    debootstrap --force-check-gpg --variant=minbase bookworm "$folder" >&2
    mirror=$(awk '$1 == "deb" { print $2; exit }' "$folder/etc/apt/sources.list")
    cat > "$folder/etc/apt/sources.list" <<EOF
deb $mirror bookworm main
deb $mirror bookworm-updates main
deb $mirror-security bookworm-security main
EOF
    tar -C "$folder" --exclude './var/lib/apt/lists/*' --exclude './var/cache/apt/*' -c . | "$ENGINE" import - "$BASE" >&2
}

build() {
    set -- --network=host --file container/Dockerfile --tag "$IMAGE" \
        --build-arg BASE="$BASE" --build-arg TORCH="$TORCH" \
        --build-arg PRETRAINED="${PRETRAINED:-}" --build-arg RUN_AS="${RUN_AS:-root}" \
        --build-arg REVISION="${REVISION:-$(git describe --always --dirty 2>/dev/null || echo unknown)}" \
        --build-arg CREATED="$(git log -1 --format=%cI 2>/dev/null || echo unknown)"
    if [ -n "$CA_BUNDLE" ]; then set -- "$@" --secret id=ca,src="$CA_BUNDLE"; fi
    if [ -f "${PIP_CONFIG_FILE:-}" ]; then set -- "$@" --secret id=pip,src="$PIP_CONFIG_FILE"; fi
    if [ -n "${PLATFORM:-}" ]; then set -- "$@" --platform "$PLATFORM"; fi
    # SageMaker takes one manifest of Docker's kind: no index, which BuildKit makes to attach provenance, and not OCI's.
    case $ENGINE in *podman) set -- "$@" --format docker ;; esac
    DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 BUILDKIT_PROGRESS=${BUILDKIT_PROGRESS:-plain} "$ENGINE" build "$@" .
}

check_lock
ENGINE=${ENGINE:-$(container/engine.sh ensure)}
check_room
ensure_base
build
say "$IMAGE is ready: $("$ENGINE" image inspect --format '{{.Size}}' "$IMAGE" | awk '{ printf "%.1f GB", $1 / 1e9 }')"
