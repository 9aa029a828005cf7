"""The command line parses arguments, calls the library and prints. torch is imported only inside a
command.
"""
