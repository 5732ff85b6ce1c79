# Two commands for a visitor, the rest for those who stay. Labs and their tests need Linux and root.

LAB ?= ibgp-flat
CARGO ?= cargo

.PHONY: demo test bench lab deps bpf

# Hosts roam under traffic through FRR and BIRD: make demo [LAB=ibgp-controller]
demo: deps
	$(CARGO) build --release --bins --example lab
	target/release/examples/lab demo $(LAB)

test: deps
	$(CARGO) build --bins --examples
	@target/debug/examples/lab clean
	$(CARGO) test --lib --test suite

bench: deps
	$(CARGO) bench

# A lab to look around in, until Ctrl-C: make lab [LAB=...]
lab: deps
	$(CARGO) build --bins --example lab
	target/debug/examples/lab up $(LAB)

deps:
	@.ci/deps

# The eBPF programs, whose objects are committed: only after a change of a .bpf.c (clang-14, llvm-14).
BPF_OUT ?= $(CURDIR)
BPF = src/dataplane/ebpf/killick src/dataplane/rewrite/rewrite benches/dataplane/inject

bpf:
	@set -e; for program in $(BPF); do \
	  object="$(BPF_OUT)/$$program.bpf.o"; \
	  mkdir -p "$$(dirname "$$object")"; \
	  (cd "$$(dirname $$program)" && clang-14 -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror \
	    -idirafter "/usr/include/$$(uname -m)-linux-gnu" -ffile-prefix-map="$$PWD"=. \
	    -c "$$(basename $$program).bpf.c" -o "$$object"); \
	  llvm-strip-14 -g "$$object"; \
	done
