"""Pictures, clips and the HTML report."""
