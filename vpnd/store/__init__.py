"""What must outlive the process, behind one small Protocol.

`contract` says the rules, `memory` is the reference, `sqlite` the embedded default.
"""
