# make demo   sets up, then packs, profiles and trains on real images
# make test   sets up, then runs format, lint, types and tests
# make native  compiles the native core again, if its sources have changed
# make wheel  sets up, then builds dist/ and tries the wheel where no compiler is
# make release-check  sets up, then installs sdist and wheel as users would and runs the three uses
# make docs  sets up, then builds the site into build/docs; make docs-serve shows it
# make servers  installs azurite, for tests of Azure, where npm is
# make test-trainers  sets up the trainers, then tests shardio under each of them on two ranks
# make campaigns  sets up, then attacks shardio for about forty minutes (see docs/pages/campaigns.md)
# make bench  sets up the peers, then measures beside them and at scale (needs an idle machine)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVERS := .servers
SERVERS_READY := $(SERVERS)/.ready
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
TRAINERS := .venv-trainers
TRAINERS_READY := $(TRAINERS)/.ready
CAMPAIGNS := tars headers images bombs canaries damage kills stores remote_kills changes disks folders forks fuzz meaning
comma := ,
say = @printf '\n== %s\n' "$(1)"
# pip says what it fetches; while it unpacks it says nothing, so the seconds are shown.
pip_install = -m pip install --disable-pip-version-check --progress-bar off
patiently = @bash -c 'start=$$SECONDS; (while sleep 10 >/dev/null 2>&1; do echo "   ... $$((SECONDS - start)) s"; done) & trap "kill $$!" EXIT; $(1); status=$$?; echo "   ($$((SECONDS - start)) s)"; exit $$status'
timed = @bash -c 'start=$$SECONDS; $(1); status=$$?; echo "   ($$((SECONDS - start)) s)"; exit $$status'

.PHONY: demo test test-trainers types pytest format native wheel release-check docs docs-serve servers campaigns bench clean

$(READY): pyproject.toml tools/requirements-dev.txt
	$(call say,setting up $(VENV): several minutes and 3 GB the first time$(comma) more where torch comes with CUDA)
	$(call patiently,$(PYTHON) -m venv $(VENV) && $(BIN)/python $(pip_install) -r tools/requirements-dev.txt -e .)
	@touch $@

$(PEERS_READY): pyproject.toml tools/bench/requirements-peers.txt tools/bench/requirements-ffcv.txt tools/bench/requirements-energon.txt
	$(call say,setting up $(PEERS): several minutes and 8 GB the first time)
	$(call patiently,$(PYTHON) -m venv $(PEERS) && $(PEERS)/bin/python $(pip_install) -r tools/bench/requirements-peers.txt -e .)
	-$(PEERS)/bin/python $(pip_install) --no-deps -r tools/bench/requirements-ffcv.txt
	-$(PEERS)/bin/python $(pip_install) --no-deps -r tools/bench/requirements-energon.txt
	@touch $@

$(TRAINERS_READY): pyproject.toml tools/requirements-trainers.txt
	$(call say,setting up $(TRAINERS): several minutes and 7 GB the first time)
	$(call patiently,$(PYTHON) -m venv $(TRAINERS) && $(TRAINERS)/bin/python $(pip_install) -r tools/requirements-trainers.txt -e .)
	@touch $@

# Tests that need azurite are skipped without it, so that nothing here fails.
$(SERVERS_READY): tools/package.json
	@mkdir -p $(SERVERS)
	@if ! command -v npm >/dev/null; then echo "npm is not installed; what needs azurite is skipped"; \
	elif cp tools/package.json $(SERVERS)/package.json && timeout 300 npm install --prefix $(SERVERS) \
	  --no-audit --no-fund --no-package-lock --loglevel=error; then touch $@; \
	else echo "azurite could not be installed; what needs it is skipped"; fi

servers: $(SERVERS_READY)

# Signatures are formatted by ruff, which is where the Python of $(VENV) is.
docs: $(READY)
	PATH="$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/mkdocs.yml

docs-serve: $(READY)
	PATH="$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve -f docs/mkdocs.yml

# Without a compiler or a header this says so, and everything runs in Python.
native:
	@$(PYTHON) shardio/native/build.py

wheel: $(READY)
	$(call say,building dist/)
	@rm -rf dist
	$(call timed,$(BIN)/python -m build --no-isolation --outdir dist .)
	$(call say,the wheel in a fresh environment)
	$(call timed,$(BIN)/python tools/try_wheel.py dist/*.whl)

release-check: $(READY)
	$(call say,building dist/)
	@rm -rf dist
	$(call timed,$(BIN)/python -m build --no-isolation --outdir dist .)
	$(call say,each in a fresh environment: several minutes)
	$(call timed,$(BIN)/python tools/release_check.py dist/*)

demo: $(READY) native
	$(call say,making images: 1797 real handwritten digits)
	$(call timed,$(BIN)/python tools/make_digits.py demo/images)
	$(call say,shardio pack demo/images demo/out --shards 8)
	@rm -rf demo/out
	$(call timed,$(BIN)/shardio pack demo/images demo/out --shards 8)
	$(call say,shardio profile demo/out --size 32)
	$(call timed,$(BIN)/shardio profile demo/out --size 32 --seconds 2)
	$(call say,python examples/train.py)
	$(call timed,$(BIN)/python examples/train.py)

test: $(READY) native servers
	$(call say,format and lint)
	$(call timed,$(BIN)/ruff format --check . && $(BIN)/ruff check .)
	$(call say,types and tests: about five minutes)
	@$(MAKE) --no-print-directory --jobs 2 types pytest

test-trainers: $(TRAINERS_READY) native
	$(call say,tests under the trainers and of the recipes: about five minutes)
	$(call timed,$(TRAINERS)/bin/python -m pytest -q tests/trainers tests/examples/test_recipes.py)

types: $(READY)
	$(call timed,$(BIN)/mypy)

pytest: $(READY) native servers
	$(call timed,$(BIN)/python -m pytest -q -n 2 --dist worksteal)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

campaigns: $(READY) native
	@$(BIN)/python tools/check/all.py $(CAMPAIGNS)

bench: $(PEERS_READY) native
	$(PEERS)/bin/python tools/bench/compare.py --markdown docs/pages/benchmarks.md
	$(PEERS)/bin/python tools/bench/pipelines.py --markdown docs/pages/benchmarks-pipelines.md
	$(PEERS)/bin/python tools/bench/tasks.py --markdown docs/pages/benchmarks-tasks.md
	$(PEERS)/bin/python tools/bench/packing.py
	$(PEERS)/bin/python tools/bench/parts.py
	$(PEERS)/bin/python tools/bench/scale.py
	$(PEERS)/bin/python tools/bench/remote.py

clean:
	rm -rf $(VENV) $(PEERS) $(TRAINERS) $(SERVERS) demo dist shardio/native/_core.*
