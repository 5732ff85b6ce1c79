# Two commands for a visitor, the rest for those who stay. Labs and their tests need Linux and root.

LAB ?= ibgp-flat
CARGO ?= cargo

.PHONY: demo test bench lab deps

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
