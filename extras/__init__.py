"""Tools beside the three scripts, each one file: python -m extras.NAME"""
