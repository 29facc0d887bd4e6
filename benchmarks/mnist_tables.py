def write_results(model, mode, found, stem):
    print("write", model, mode, len(found), stem)
