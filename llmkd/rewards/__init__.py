"""Rewards: plain functions of a prompt, a completion and a reference, and the sandbox that runs code for them."""
