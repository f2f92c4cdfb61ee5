"""Weight and activation quantisers, and exact step functions between integer tensors."""
