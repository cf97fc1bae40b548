"""The full forms of the proofs: a million events, twenty crashes a run, several seeds, every mutant. `make prove`.

Not collected by `make test`: the files here do not begin with `test_`.
"""
