"""Pictures, figures and pages made of plain data; nothing here runs a model."""
