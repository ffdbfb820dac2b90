"""The stations of the line that `condensec.pipeline` runs, each a plain function from values to values."""
