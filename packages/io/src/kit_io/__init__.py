"""Reading and checking folders, archives and tables; atomic writing."""
