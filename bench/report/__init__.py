"""What the results say: figures, their reasons, markdown, charts; and the machine."""
