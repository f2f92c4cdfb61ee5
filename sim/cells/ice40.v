// iCE40: yosys has models of all cells. This one stands for it because it simulates faster, as nearly all cells are lookup tables.

// Lookup table.
module SB_LUT4 #(parameter [15:0] LUT_INIT = 0) (output O, input I0, I1, I2, I3);
    assign O = LUT_INIT[{I3, I2, I1, I0}];
endmodule
