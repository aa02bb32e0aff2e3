"""Runs a program: reads, computes and writes in any order, under a memory budget, then settles the assertions."""
