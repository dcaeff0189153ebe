"""Song & Ermon 2020: from NCSN to NCSNv2, technique by technique."""
