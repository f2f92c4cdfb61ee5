"""Training scripts of the models in the zoo, one file each; they need ``pip install 'tritloom[train]'``."""
