from burnish.cli import main

main()
