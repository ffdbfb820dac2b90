"""What build systems need: the files a run reads, results that are kept, depfiles, and gates.

    inputs       every file a run reads
    fingerprint  one key for inputs, settings, version and machine
    cache        results by key: whole or not there, bounded in size, shared by processes
    run          the line, answered from the cache where it can be
    depfile      the same files as a rule for Make and Ninja
    gate         budgets that a model in the tree has to keep

The CMake module and the Bazel rule lie here, too.
"""
