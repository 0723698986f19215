// Lets the sources be checked before the modules are built; afterwards their own types count.
declare module "*/ernie_vil.js";
