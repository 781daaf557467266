"""The library timed beside its rivals, on the same weights, inputs and machine.

`__main__` is the command line, `run` the whole measurement, `worker` the process that each engine
lives in, `engines` the library and its rivals behind one interface.
"""
