"""Tables, pictures and pages of any study, as files: CSV, Markdown, LaTeX, PNG, SVG and HTML."""
