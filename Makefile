PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: build run test bench kernel install uninstall lint

build:
	cargo xtask build

run:
	cargo xtask run

test:
	cargo xtask test $(if $(FULL),--full)

bench:
	cargo xtask bench

kernel:
	cargo xtask kernel lean

install:
	cargo xtask install --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

uninstall:
	cargo xtask uninstall --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

lint:
	cargo xtask lint
