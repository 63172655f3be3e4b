#!/bin/sh
# Take the SBOM (CycloneDX) and the licences out of the image, into build/. With `scan`, ask a vulnerability scanner.
#
#   container/sbom.sh [scan]      settings from the environment: IMAGE=kennel:latest  ENGINE=a docker or podman
#
# A scanner needs a database of vulnerabilities, which it downloads: grype or trivy, whichever is installed. Without
# one nothing is scanned, and that is a failure. pip-audit is not used: where it reaches no database it says
# "No known vulnerabilities found" and exits 0.
set -eu
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-kennel:latest}
ENGINE=${ENGINE:-$(container/engine.sh find || echo none)}

say() { echo "sbom: $*" >&2; }
fail() { say "$*"; exit 1; }

take_out() {
    [ "$ENGINE" != none ] || fail "no container engine answers"
    path=$("$ENGINE" image inspect --format "{{index .Config.Labels \"$1\"}}" "$IMAGE" 2>/dev/null) || fail "there is no image $IMAGE: make image"
    [ -n "$path" ] || fail "$IMAGE names no $1: it was not built by container/build.sh"
    "$ENGINE" run --rm --network none "$IMAGE" cat "$path" > "$2.part"
    mv "$2.part" "$2"
    say "$2 ($(wc -c < "$2") bytes)"
}

scan() {
    if command -v grype >/dev/null; then
        say "asking $(command -v grype)"
        grype --fail-on high "sbom:$1"
    elif command -v trivy >/dev/null; then
        say "asking $(command -v trivy)"
        trivy sbom --exit-code 1 --severity HIGH,CRITICAL "$1"
    else
        fail "neither grype nor trivy is installed: NOTHING WAS SCANNED. Install one of them (https://github.com/anchore/grype, https://trivy.dev) and run this again, or give $1 to the scanner that you have; ECR scans on push"
    fi
}

mkdir -p build
take_out kennel.sbom build/kennel.cdx.json
take_out kennel.licences build/kennel-licences.txt
case ${1:-} in
    '') ;;
    scan) scan build/kennel.cdx.json ;;
    *) fail "usage: container/sbom.sh [scan]" ;;
esac
