"""Headrace beside what people would pick instead."""
