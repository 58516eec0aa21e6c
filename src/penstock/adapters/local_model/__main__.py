"""``python -m penstock.adapters.local_model``: the process that ``LocalModel`` starts."""

from penstock.adapters.local_model.serving import main

if __name__ == "__main__":
    main()
