"""What a load will do to a pool of model servers that KEDA scales: simulated, compared, and one setting chosen.

::

    loads (a trace, a generator, the ledger) -> simulation (servers, autoscaler) -> outcomes -> choosing
                                                                                           `-> page, picture

Pure: a seed and numbers go in, numbers and text come out; the same go in, the same come out.
"""
