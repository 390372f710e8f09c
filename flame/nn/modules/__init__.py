"""The layers, a file a family, under PyTorch's file names. `flame.nn` has all their names."""
