"""Classification with a backbone: data sets of folders, accuracy, k-NN and linear probes."""
