# A newcomer needs two of these: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help demo image sbom scan page test test-slow soak bench docs lock lock-cpu
SHELL := /bin/sh
# Programs that tests call, such as aws, come from the environment of the tests.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Environments are made side by side.
MAKEFLAGS += --jobs=2

# Every environment that the tests use.
TESTED_WITH = .venv/ready .venv-sam/ready .venv-sdk/ready .venv-sdk3/ready
# Files of tests, two at a time: most tests wait for programs to start.
SIDE_BY_SIDE = -n 2 --dist loadfile
# Debian's versions are not pinned: its security updates are wanted. Builders ship nothing, and pip's cache is BuildKit's.
HADOLINT = --ignore DL3008 --ignore DL3009 --ignore DL3042

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv-deploy/ready ## train on real images in the container, serve the result, ask it (DATA=folder: your own photos)
	.venv-deploy/bin/python -m deploy.demo $(if $(DATA),--data '$(DATA)')

image: ## build kennel:latest (container/build.sh lists the settings)
	container/build.sh

sbom: ## the image's SBOM (CycloneDX) and licences, into build/
	container/sbom.sh

scan: ## the same, and ask grype or trivy, if you have one, about vulnerabilities
	container/sbom.sh scan

page: .venv-deploy/ready ## the page for people, for a container that serves (CONTAINER=127.0.0.1:8080)
	.venv-deploy/bin/python lambda/local.py --container $(or $(CONTAINER),127.0.0.1:8080)

test: $(TESTED_WITH) ## lint, types, and every test but the slow ones
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/shellcheck .ci/run build_and_push.sh container/*.sh deploy/*.sh
	.venv/bin/hadolint $(HADOLINT) container/Dockerfile
	.venv/bin/mypy
	if container/engine.sh ensure >/dev/null; then container/build.sh; fi
	.venv/bin/pytest $(SIDE_BY_SIDE) -m 'not slow'

test-slow: $(TESTED_WITH) ## the tests that take minutes each
	.venv/bin/pytest $(SIDE_BY_SIDE) -m slow

soak: .venv/ready ## an hour of mixed load on serving (SECONDS=3600)
	KENNEL_SOAK_SECONDS=$(or $(SECONDS),3600) .venv/bin/pytest -s tests/contract/test_serve_soak.py

bench: .venv/ready ## training, serving and Lambda beside the usual way, into docs/benchmarks.md (PART=serving: one)
	.venv/bin/python -m tests.benchmarks $(PART)

docs: .venv/ready ## write docs/reference.md from the code
	.venv/bin/python -m docs.reference

LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
LOCKS = container/requirements container/requirements-torch-cuda container/requirements-inventory deploy/requirements lambda/requirements

lock: .venv/ready ## write the hashed locks anew from the .in files
	$(LOCK) tests/requirements.in -o tests/requirements.txt
	for lock in $(LOCKS); do $(LOCK) $$lock.in -c tests/requirements.txt -o $$lock.txt || exit 1; done
	for part in sam sdk sdk3; do $(LOCK) tests/requirements-$$part.in -o tests/requirements-$$part.txt || exit 1; done

lock-cpu: .venv/ready ## lock PyTorch's CPU wheels (TORCH_INDEX=their index)
	$(LOCK) container/requirements-torch-cpu.in -c tests/requirements.txt -o container/requirements-torch-cpu.txt \
	    --extra-index-url '$(TORCH_INDEX)' --emit-index-url --index-strategy unsafe-best-match

# Every environment is made alike: its folder, and the lock that fills it.
.venv/ready: tests/requirements.txt
.venv-deploy/ready: deploy/requirements.txt
.venv-sam/ready: tests/requirements-sam.txt
.venv-sdk/ready: tests/requirements-sdk.txt
.venv-sdk3/ready: tests/requirements-sdk3.txt
.venv-deploy/ready $(TESTED_WITH):
	deploy/setup.sh $(@D) $<
	touch $@
