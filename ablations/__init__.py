"""The ablation study: grids of variants, their jobs, and the report made from their files."""
