# Two commands for a visitor, the rest for those who stay. All need Linux; labs need root.

LAB ?= ibgp-flat
CARGO ?= cargo

.PHONY: demo test bench lab deps build

# Hosts roam under traffic through FRR and BIRD: make demo [LAB=ibgp-controller]
demo: deps build
	target/debug/examples/lab demo $(LAB)

test: deps build
	-@target/debug/examples/lab clean
	$(CARGO) test

bench: deps
	$(CARGO) bench

# A lab to look around in, until Ctrl-C: make lab [LAB=...]
lab: deps build
	target/debug/examples/lab up $(LAB)

build:
	$(CARGO) build --bins --examples

deps:
	@.ci/deps
