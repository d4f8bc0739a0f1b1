f22.c
