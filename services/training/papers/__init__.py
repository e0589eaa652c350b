"""Papers that a reviewer asks for, from a run's own numbers: as HTML and as PDF, in English and Chinese."""
