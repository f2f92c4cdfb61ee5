"""What runs inside a simulator under cocotb; started by :mod:`tritloom.sim.cocotb_bench`."""
