"""The oracle: what must come out, computed from what went in, slowly and obviously.

It imports nothing of the project (import-linter holds that) and nothing beyond the standard library: what it knows, it knows from the
contract's words. Numbers are ints and Decimals; one event is handled at a time; nothing is cached.

    config.py    what the configuration says: meters, tenants, price books
    event.py     whether an event counts, and as what
    ledger.py    which of the events that were sent is accepted, duplicate or rejected, in the order of sending
    usage.py     what the accepted events add up to: meter, subject, dimensions, window
    charges.py   what that costs in a month
    outcome.py   all of it together, from the files that were sent
"""
