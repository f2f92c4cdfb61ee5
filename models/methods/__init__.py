"""Methods of training ternary networks, one file each."""
