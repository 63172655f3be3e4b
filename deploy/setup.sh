#!/bin/sh
# Make a virtual environment of Python 3.11 in FOLDER and install the locked packages of REQUIREMENTS.
#
#   deploy/setup.sh FOLDER REQUIREMENTS
#
# Python 3.11 is found on PATH, else comes from the distribution (root on Debian 12), else from uv. Without a C compiler
# and Python's headers sagemaker-training, which is built from source, is left out, and said so.
set -eu
folder=$1
requirements=$2

say() { echo "setup: $*" >&2; }

is_usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

find_python() {
    for python in python3.11 python3 python; do
        if command -v "$python" >/dev/null && is_usable "$python"; then
            command -v "$python"
            return 0
        fi
    done
    return 1
}

install_python() {
    if is_root_on_debian; then
        say "installing Python 3.11 from the distribution"
        apt-get update -qq >/dev/null
        if install_packages python3.11 python3.11-venv; then find_python && return 0; fi
    fi
    say "no Python 3.11 from the distribution: installing it with uv"
    command -v uv >/dev/null || install_uv
    PATH="$PWD/.uv:$PATH"
    uv python install 3.11 >&2
    uv python find 3.11
}

install_uv() {
    if ! command -v curl >/dev/null; then
        is_root_on_debian || { say "uv's installer needs curl: install curl, or Python 3.11, and run this again"; exit 1; }
        install_packages curl ca-certificates
    fi
    curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$PWD/.uv" sh >&2
}

is_root_on_debian() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

install_packages() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; }

can_compile() {
    headers=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    echo '#include <Python.h>' | cc -I "$headers" -fsyntax-only -x c - 2>/dev/null
}

# The lock without one package: its block runs from its name to the next line that starts with a name.
without_toolkit() { awk '/^[^ ]/ { keep = !/^sagemaker-training==/ } keep' "$1"; }

if [ ! -x "$folder/bin/python" ] || ! is_usable "$folder/bin/python"; then
    python=$(find_python || install_python)
    "$python" -m venv "$folder"
fi
if grep -q '^sagemaker-training==' "$requirements" && ! can_compile; then
    say "there is no C compiler, or Python's headers are missing: sagemaker-training is left out, and our training entry is called directly"
    mkdir -p "$folder/share"
    without_toolkit "$requirements" > "$folder/share/requirements.txt"
    requirements=$folder/share/requirements.txt
fi
# A lock names every package, so dependencies need not be looked at again.
"$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$requirements"
