# Every target may be run again and is quick the second time. The target directory is cargo's: CARGO_TARGET_DIR counts.
target := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run test check guest lab image

help:
	@echo 'make run    boot a Linux guest from examples/linux.yaml and give its console (Ctrl-] leaves)'
	@echo 'make test   all tests; the first time builds a small kernel, some minutes'
	@echo 'make check  format, lints, unit tests: what to run before a commit'
	@echo 'make guest  make the test guests and say where they are'
	@echo 'make image  pack the programs as an OCI image: an archive, whose path is printed'
	@echo 'make lab    a shell in the lab, a host machine with full KVM in software'
	@echo 'run, test, guest, image and lab install missing Debian packages and need root for that'

run:
	@tests/deps run
	@cargo build --profile quick --locked -p nacelle-launcher
	@tests/guest/run $(target)/quick/nacelle

test:
	@tests/run

check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --workspace --lib --bins

guest:
	@tests/deps test
	@tests/guest/build

image:
	@tests/deps run
	@deploy/image/build

lab:
	@tests/deps run
	@tests/lab/run --timeout 0 bash
