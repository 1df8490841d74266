"""Adapters for the pipelines people run on SAM, installed as ``mobile_sam_plugin.integrations``."""
